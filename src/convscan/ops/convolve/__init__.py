"""y[i,n] = sum_j h[i-j+origin,n] x[j,n]: two-sided and circular."""
