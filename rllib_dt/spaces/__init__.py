"""Every question that the package asks of a gymnasium space, one registered function each.

`leaves` answers in numpy (checks, layout, membership, description) and imports no torch, so that
Ray's reading tasks stay light. `encoders` and `heads` hold the network's side of a leaf.
"""
