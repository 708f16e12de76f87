"""The parts of the benchmark. Each module measures one or two parts of a subject, and shows nothing."""
