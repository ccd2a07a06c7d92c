"""What trustfabric knows and decides: values and pure functions, no IO, no clock."""
