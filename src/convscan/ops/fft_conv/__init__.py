"""y = einsum(equation, x, ...) in which the axis l of x and that of one kernel are causally convolved."""
