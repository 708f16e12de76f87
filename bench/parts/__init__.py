"""The parts of the benchmark, one a module: what each measures, and how."""
