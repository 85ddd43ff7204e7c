"""What is trained: DALL-E's and CLIP's transformers."""
