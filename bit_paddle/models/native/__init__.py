"""The network's operators: `plain` in pure Paddle, `compiled` in C++, which is faster on a CPU.

`prebuilt` finds the C++ compiled for common processors; `build` compiles it for others and chooses.
"""
