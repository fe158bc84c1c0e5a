"""y[t] = sum_n C[t,n] h[t,n], h[t,n] = exp(dt[t] A[n]) h[t-1,n] + dt[t] B[t,n] u[t]: the selective scan of Mamba."""
