"""python -m dalle.kernels.native: compiles the native kernels now, so that no later command waits for them."""

from dalle.kernels.native.build import library

if __name__ == "__main__":
    library()
