"""`python -m img2img`: the same as the command `img2img`."""

from img2img.cli import main

if __name__ == "__main__":
    main()
