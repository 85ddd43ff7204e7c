"""Operations that have fast implementations: each is one function with its plain PyTorch body in one module.

`dispatch.accelerated` is the one seam: it lets the function of the same name in `native` go first. `switches` has the
environment variable DALLE_KERNELS, which turns them off.
"""
