"""The network's operators: `plain` in pure Paddle, `compiled` in C++, which is faster on a CPU.

`build` compiles the C++ where the machine allows it, and chooses between the two.
"""
