"""A web page for a trained model: images against labels, and search.

`app` answers requests, `upload` reads and limits what they bring, `scorer` is
the one thread that uses the model, `gallery` finds and shows what was embedded.
page.html, page.css and page.js are the page; it loads nothing from elsewhere.
"""
