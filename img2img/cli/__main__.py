"""`python -m img2img.cli`."""

from img2img.cli import main

main()
