"""Your own data: image folders, Parquet files, WebDataset tar shards, data sets of the Hugging Face hub."""
