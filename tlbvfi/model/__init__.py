"""The TLB-VFI networks: tensors in, tensors out; no files, no devices, no video."""
