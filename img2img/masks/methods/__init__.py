"""The mask methods, one a module; each is registered in `METHODS` of `masks.base`, which names the modules."""
