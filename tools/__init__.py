"""Programs for who works on faceapp; `make` calls them."""
