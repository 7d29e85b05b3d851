"""A package, because its files share their names with those of other rooms."""
