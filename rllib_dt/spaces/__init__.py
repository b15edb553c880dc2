"""What the package needs to know about gymnasium spaces: one registered function per question.

`leaves` answers in numpy (checks, layout, membership, description) and imports no torch, so that
Ray's reading tasks stay light. `encoders` and `heads` answer for the network.
"""
