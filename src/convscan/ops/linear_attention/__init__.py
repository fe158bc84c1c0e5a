"""What ssd_scan, gated_linear_attention and mlstm have in common: linear attention with decay."""
