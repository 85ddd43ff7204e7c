"""Operations with fast implementations: each is one function with its plain PyTorch body, in one module.

`dispatch.accelerated` is the only link to native code: it tries the function of the same name in `native` first.
`switches` reads the environment variable DALLE_KERNELS, which turns fast implementations off.
"""
