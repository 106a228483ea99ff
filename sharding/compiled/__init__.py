"""Reading compiled programs: memory, matmuls and communication of a step."""
