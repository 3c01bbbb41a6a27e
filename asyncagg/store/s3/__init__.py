"""S3 as a store: one retry layer around a data plane and multipart uploads."""
