"""Peak matmul speed of devices, by the name JAX gives them."""

PEAK_FLOPS = {
    # Dense bfloat16 with float32 accumulation, per device as JAX counts them; makers' data sheets.
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak FLOP/s of a device in bfloat16, or None where it is not known (any CPU).

    The longest name of the table that the kind begins with decides.
    """
    names = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(names, key=len)] if names else None
