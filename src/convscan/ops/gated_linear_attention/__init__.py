"""S[t] = diag(exp(g[t])) S[t-1] + k[t] v[t]^T, y[t] = scale S[t]^T q[t]."""
