"""Generated stubs of the queryrec.v1 contract; import the modules, not this package."""
