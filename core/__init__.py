"""The ground floor of Verax: everything that more than one system needs, and nothing that knows a paper."""
