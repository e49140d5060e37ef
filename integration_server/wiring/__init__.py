"""How those parts are put together that take some choosing: by settings, files, or extras that may be missing."""
