"""From a trained folder to what serves it: graphs for ONNX Runtime and OpenVINO, in the same folder.

graphs    the model as two graphs: a batch of sentences, and pairs of embeddings
check     whether a graph gives what the model gives, on real and on odd text
folder    writing onnx/ and openvino/ beside the weights, whole or not at all
bundle    the runtime as one file
space     a demo for the Hub: a Gradio app with the model beside it (space_app is the app)
"""
