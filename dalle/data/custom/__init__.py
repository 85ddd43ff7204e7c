"""Data sets of the user's own: folders, Parquet files, WebDataset tar shards, data sets of the Hugging Face hub."""
