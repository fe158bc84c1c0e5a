"""C[t] = f[t] C[t-1] + i[t] k[t] v[t]^T, y[t] = C[t]^T q[t] / max(|n[t]^T q[t]|, 1)."""
