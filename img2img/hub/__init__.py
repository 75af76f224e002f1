"""Sharing a bundle in the Hub's conventions: a folder with the bundle and a model card, from a disk or from the Hub.

save_pretrained("runs/demo", "shared/demo", license="apache-2.0")
model = from_pretrained("shared/demo")                      # a folder: never touches the network
push_to_hub("runs/demo", "me/demo", license="apache-2.0")   # the only function that sends anything
model = from_pretrained("me/demo", revision="main")
"""

from img2img.hub.folder import FILES, save_pretrained
from img2img.hub.remote import from_pretrained, pretrained_folder, push_to_hub

__all__ = ["FILES", "from_pretrained", "pretrained_folder", "push_to_hub", "save_pretrained"]
