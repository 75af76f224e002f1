"""A bundle: a backbone and its tasks on disk."""

from img2img.bundle.description import FORMAT, VERSION
from img2img.bundle.folder import (
    HEAD,
    PATIENCE,
    add_task_to_bundle,
    basis_path,
    bundle_folder,
    check_bundle,
    check_has_tasks,
    check_not_planned,
    check_outside,
    delete_task_from_bundle,
    load_backbone,
    load_bases,
    load_bundle,
    load_tasks,
    read_bundle,
    save_backbone,
    task_path,
)

__all__ = [
    "FORMAT",
    "HEAD",
    "PATIENCE",
    "VERSION",
    "add_task_to_bundle",
    "basis_path",
    "bundle_folder",
    "check_bundle",
    "check_has_tasks",
    "check_not_planned",
    "check_outside",
    "delete_task_from_bundle",
    "load_backbone",
    "load_bases",
    "load_bundle",
    "load_tasks",
    "read_bundle",
    "save_backbone",
    "task_path",
]
