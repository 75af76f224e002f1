"""What a user gives, checked: options against the class that takes them, the arguments of a call, and what files hold."""

from img2img.validation.arguments import flag, mapping, one_of, path, text, whole_number
from img2img.validation.messages import WHOLE, check_key, did_you_mean, input_error, paths_of
from img2img.validation.options import Options, Spec, call_with, checked, parsed
from img2img.validation.stored import Exact, Number, Size, Stored, Whole, as_model, finite

__all__ = [
    "WHOLE",
    "Exact",
    "Number",
    "Options",
    "Size",
    "Spec",
    "Stored",
    "Whole",
    "as_model",
    "call_with",
    "check_key",
    "checked",
    "did_you_mean",
    "finite",
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
