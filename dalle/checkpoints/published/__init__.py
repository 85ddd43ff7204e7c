"""What others have published: their files to our modules, a module for each family."""
