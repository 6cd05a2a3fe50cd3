"""What both halves stand on: it knows neither of them."""
