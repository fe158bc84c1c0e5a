"""y[i,n] = a[i,n] y[i-1,n] + x[i,n]."""
