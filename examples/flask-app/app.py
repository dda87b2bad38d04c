"""The service: GET /price?kilos=2.5"""

from flask import Flask, jsonify, request
from rates import price

app = Flask(__name__)


@app.get("/price")
def get_price():
    try:
        return jsonify(cents=price(float(request.args["kilos"])))
    except (KeyError, ValueError) as error:
        return jsonify(error=str(error)), 400
