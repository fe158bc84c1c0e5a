"""k[w] = sum_n v[n] / (z[w] - lambda[n])."""
