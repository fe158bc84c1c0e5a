"""y[i,n] = x[i,n] + sum_k a_k[i,n] y[i-k,n]."""
