"""The demo's URLs."""

from django.urls import path

from . import views

app_name = "demo"
urlpatterns = [
    path("", views.Page.as_view(), name="page"),
    path("bench", views.BenchTurn.as_view(), name="bench"),
    path("events", views.Events.as_view(), name="events"),
    path("hello", views.hello, name="hello"),
    path("jobs", views.Jobs.as_view(), name="jobs"),
    path("jobs/<str:text>", views.OneJob.as_view(), name="job"),
    path("now", views.Now.as_view(), name="now"),
    path("status", views.Status.as_view(), name="status"),
]
