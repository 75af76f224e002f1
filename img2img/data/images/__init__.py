"""Image files: which they are, and how each kind is decoded into 8-bit sRGB or class indices."""
