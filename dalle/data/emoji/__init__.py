"""The embedded data set: emoji with captions in three languages, composed on the fly."""
