"""What a user gives, checked: options against the class that takes them, and the arguments of a call."""

from img2img.validation.arguments import flag, mapping, one_of, path, text, whole_number
from img2img.validation.messages import WHOLE, check_key, input_error, paths_of
from img2img.validation.options import Options, Spec, call_with, checked, parsed

__all__ = [
    "WHOLE",
    "Options",
    "Spec",
    "call_with",
    "check_key",
    "checked",
    "flag",
    "input_error",
    "mapping",
    "one_of",
    "parsed",
    "path",
    "paths_of",
    "text",
    "whole_number",
]
