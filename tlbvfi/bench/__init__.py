"""How fast TLB-VFI is on this machine, and how much memory it takes: what `tlbvfi bench` measures.

Every measurement runs in a process of its own (`child`), so that a peak of memory is its own and
running out of memory at one size leaves the others alone. The process that starts them (`report`)
needs no torch.
"""
