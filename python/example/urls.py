from django.contrib import admin
from django.urls import path
from django.views.generic import TemplateView
from shop.views import recount

urlpatterns = [
    path("", TemplateView.as_view(template_name="shop.html")),
    path("recount/", recount),
    path("admin/", admin.site.urls),
]
