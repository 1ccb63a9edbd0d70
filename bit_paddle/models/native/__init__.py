"""What the network computes with: `plain`, in Paddle, and `compiled`, faster on a CPU.

`build` compiles the latter where that can be done, and chooses.
"""
