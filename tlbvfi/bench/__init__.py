"""How fast TLB-VFI is on this machine, and how much memory it takes: the parts of `tlbvfi bench`.

Every measurement runs in its own process (`child`), so that it has its own memory peak and running
out of memory at one size does not affect the others. The process that starts them (`report`) does
not need torch.
"""
