"""How a report is shown: a terminal table, a JSON document, a page of HTML."""
