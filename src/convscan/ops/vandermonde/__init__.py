"""y[l] = Re sum_n c[n] a[n]^l."""
