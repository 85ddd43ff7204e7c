"""The pipeline as a server: OpenAI's Images API, search and classification, and a page, over one batch scheduler."""
