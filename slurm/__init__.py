"""From a recipe to jobs on a cluster: batch scripts that are readable and run by hand."""
