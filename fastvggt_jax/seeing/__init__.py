"""A finished reconstruction, to be looked at: read again (`result`), as a page (`report`), in the browser
(`viewer`), as a page of its own that turns (`share`).
"""
